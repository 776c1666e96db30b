"""The documentation: Markdown pages, and in `building` what a build adds to them."""
