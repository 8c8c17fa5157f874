"""The report as one page: self-contained HTML with no network, readable without scripts."""
