"""The paper's tables and figures, on any data in our schema: `tfmm experiments`."""
