"""The live dashboard: pure views of a reduced event stream, and one paint task."""
