"""The figures of the report: functions of arrays and tables that return a matplotlib figure."""
