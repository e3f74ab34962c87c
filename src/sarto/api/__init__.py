"""HTTP handlers. Read `routes` (every URL), then `http.routing`, `http.requests` and `http.responses` (from a request
to a message, and from an error to a body). Each folder is one API: `vertex`, `gcs`, `iam`, `openai`; `http.grpc_bridge`
is gRPC."""
