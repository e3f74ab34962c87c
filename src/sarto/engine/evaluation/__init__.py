"""Is the tuned model better, and where is it worse? Read `metrics` and `aggregate`, `judge`, `statistics`, then
`evaluate` (rows through a generator, scored) and `report`.
"""
