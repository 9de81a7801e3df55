"""The Beam job that embeds new items as their events arrive."""

from tfmm import extras

extras.verify("stream", "apache_beam", "prometheus_client")
