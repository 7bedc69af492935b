"""How far a judge can be trusted: gate, trials, agreement, alarms."""
