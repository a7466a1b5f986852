"""A run as Prometheus metrics, over HTTP or in a file: made from a copy of what the status of a run is made from.

Needs the extra ``metrics`` (prometheus-client), so that nothing else imports this.
"""
