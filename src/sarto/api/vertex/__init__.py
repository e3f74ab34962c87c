"""Vertex AI, one module for each resource. `unimplemented` names the methods that Sarto does not have."""
