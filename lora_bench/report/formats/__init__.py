"""The report's numbers as Markdown, LaTeX, terminal tables and the page."""
