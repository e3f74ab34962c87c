"""HTTP for all APIs: `application` handles each request, by `routing`, within `limits`."""
