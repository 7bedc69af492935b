"""The served judge over HTTP."""
