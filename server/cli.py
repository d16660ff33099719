"""`croupier`: the command line. A command's module is imported when it is run, so `--help` and `serve` start fast.

Exit codes: 0 done, 1 failed (one sentence on stderr), 2 wrong usage or settings.
"""

import importlib

import click

# Command -> (module of server.commands, its help in one line).
COMMANDS = {
    "serve": ("serve", "Run a server: HTTP in, choices out, rewards learned."),
    "router": ("router", "Take rewards that others send to a Kafka topic into the event log."),
    "learner": ("learner", "Learn from a Kafka log into a Redis store; any number share the shards."),
    "demo": ("demo", "See it learn: a server, a small world, simulated users."),
    "policy": ("policy", "Make, show, change and delete the policies of a running server."),
    "snapshot": ("snapshot", "Keep what a running server has learned, under a label."),
    "restore": ("snapshot", "Put what a policy has learned back to a snapshot."),
    "graph": ("graph", "Build the graph that a diag-linucb policy needs."),
    "evaluate": ("evaluate", "Compare policies on real and simulated problems, no server needed."),
    "replay": ("data", "Check that the parameters are what the log says, bit for bit."),
    "rebuild": ("rebuild", "Make the parameters anew from the oldest snapshot and the log."),
    "export": ("data", "Write everything that is known to one file."),
    "import": ("data", "Make a data folder, or a log and a store of many machines, from an export."),
    "doctor": ("data", "Look: what is kept, why, and what is wrong."),
    "metrics": ("metrics", "List all metrics: what each says, and what to do about it."),
    "settings": ("settings", "List all settings of the server; make API keys."),
}


class Failed(click.ClickException):
    """What the world did wrong, as one sentence on stderr."""

    def __init__(self, sentence: object) -> None:
        if isinstance(sentence, OSError) and sentence.filename is not None:
            sentence = f"{sentence.filename}: {sentence.strerror}."
        super().__init__(str(sentence))

    def show(self, file: object = None) -> None:
        del file
        click.echo(f"croupier: {self.message}", err=True)


class Wrong(Failed):
    """Wrong usage, as one sentence on stderr."""

    exit_code = 2


class Lazy(click.Group):
    """A group whose commands live in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        del ctx
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"server.commands.{COMMANDS[name][0]}")
        command: click.Command = getattr(module, name if name != "import" else "import_")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, help) for name, (_, help) in COMMANDS.items()])


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="croupier")
def cli() -> None:
    """A real-time bandit recommendation server: ask what to show, say what came of it, and it learns.

    \b
    Begin with
      croupier demo                      watch it learn, for as long as you like
      croupier serve                     a server on http://127.0.0.1:8000; /docs there explains the API
      croupier policy put headlines '{"algorithm": "banker", "arms": ["a", "b", "c"]}'
    """


def main() -> None:
    """The console script."""
    cli(prog_name="croupier")
