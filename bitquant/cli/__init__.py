"""The ``bitquant`` command: one file a subcommand, each importing torch only when it runs."""

import os

import click

import bitquant
from bitquant.cli.bench import bench
from bitquant.cli.demo import demo
from bitquant.cli.doctor import doctor
from bitquant.cli.errors import Commands
from bitquant.cli.export import export
from bitquant.cli.inspect import inspect
from bitquant.cli.profile import profile
from bitquant.cli.quantize import quantize


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(bitquant.__version__, prog_name="bitquant")
def main():
    """Turn a trained encoder into a 1-bit one that is really smaller and really faster."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are directories; nothing is ever fetched


for command in (quantize, inspect, profile, bench, export, demo, doctor):
    main.add_command(command)
