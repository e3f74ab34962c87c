"""Is the tuned model better, and where is it worse? Read `job.py` (what a job asks for), `evaluate.py` (the documented
metrics), `report.py` (the standard report), then what they stand on: `rows`, `asking`, `metrics`, `judge`,
`statistics`.

Loads no torch: models are behind the one seam `Generate`.
"""
