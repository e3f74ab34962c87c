"""Assembly of the service: start with `app`. Only this package and `cli` read the settings."""
