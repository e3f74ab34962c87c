"""The metrics: `computed` from texts only, `judge` by a model. `plan` converts the API's specs, `aggregate` sums up
scores."""
