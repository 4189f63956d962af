"""What the report says, as numbers: rows of records, settings, statistics, tables. No drawing, no file."""
