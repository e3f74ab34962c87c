"""Base models: `decoder` (shared by all families), one short module per family, `load` (reads weights), `lora`
(adapters). Conversion of foreign layouts is in `engine.weights`."""
