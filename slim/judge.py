"""`python -m slim.judge`: `slim judge` with the option names of the earlier script."""

import sys

from slim.__main__ import main

OLD = {
    "--original_model": "--original",
    "--pruned_model": "--pruned",
    "--dataset_name": "--dataset",
    "--dataset_config": "--config",
    "--dataset_split": "--split",
    "--num_samples": "--samples",
    "--output_file": "--output",
    "--llm_api_endpoint": "--endpoint",
}


def translated(arguments: list[str]) -> list[str]:
    """The arguments with the verb's own names in place of the old ones, also of the form `--name=value`."""
    pairs = (argument.partition("=") for argument in arguments)
    return ["judge", *(OLD.get(name, name) + equals + value for name, equals, value in pairs)]


if __name__ == "__main__":
    sys.argv = ["slim", *translated(sys.argv[1:])]
    main()
