"""Rules shared by all resources of a Google API: filters, list pages, labels, times."""
