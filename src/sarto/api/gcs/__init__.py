"""Cloud Storage: the JSON API in `routes`, `buckets`, `objects`, `uploads`, `download`, `batch`; the XML API in
`xml`."""
