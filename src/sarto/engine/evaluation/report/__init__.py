"""The evaluation report: its numbers, the HTML page, its files, and the best checkpoint."""
