"""The formats of the report: terminal, Markdown, CSV, JSON, LaTeX and HTML."""
