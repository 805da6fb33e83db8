"""What every long-running process needs: logs, metrics, signals, heartbeats, children, the clock's alarms."""
