"""The command line: `app` has the commands, `options` selects cells, `tables` and `progress` print."""
