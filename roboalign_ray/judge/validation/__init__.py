"""Validation of judges: gate, trials, agreement, alarms."""
