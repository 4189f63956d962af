"""The command line: `app` has the commands, `options` what they share, `tables` and `progress` what they print."""
