"""To and from what people already have: functions to call, no plugins."""
