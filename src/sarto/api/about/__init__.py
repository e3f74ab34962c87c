"""Discovery, health and metrics of the service itself."""
