"""``qmpalloc schema``: JSON Schemas of the TOML files, by which editors complete and check them."""

from __future__ import annotations

import click

from qmpalloc.cli.streams import print_json


@click.command()
@click.argument("kind", type=click.Choice(["configuration", "experiment"]))
def schema(kind: str) -> None:
    """Print the JSON Schema of a configuration, or of an experiment.

    For editors with a TOML language server, such as Even Better TOML: save it beside the file, whose first line is then
    '#:schema ./configuration.json'. What holds between keys only qmpalloc checks.
    """
    from qmpalloc.config.json_schema import schema_of
    from qmpalloc.config.schema import ConfigFile
    from qmpalloc.experiment.spec.schema import ExperimentFile

    print_json(schema_of(ConfigFile if kind == "configuration" else ExperimentFile))
