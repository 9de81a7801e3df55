"""Converters of public data sets into the tables of `tfmm.data.schema`."""
