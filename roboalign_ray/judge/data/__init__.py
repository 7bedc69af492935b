"""Judged pairs and label stores."""
