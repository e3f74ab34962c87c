"""HTTP in, HTTP out. Read `routes` (every URL), `routing` and `http` (how a request becomes a message and an error a
body), then one file per noun; `gcs*` is the storage API, `openai` the other dialect, `grpc_bridge` the other transport.
"""
