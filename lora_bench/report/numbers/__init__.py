"""The numbers of the report: rows, entries, statistics and tables in a neutral form."""
