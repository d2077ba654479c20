"""A checkpoint to a model Hub: what would go where is known first, then it is sent by the Hub's own client."""

from dataclasses import dataclass
from pathlib import Path

from slim.core.errors import InputError, SlimError, without_secrets
from slim.core.hub import first_line
from slim.core.progress import Progress, silent
from slim.planning.files import load_plan
from slim.pruning.checkpoint import PLAN_FILE


@dataclass(frozen=True)
class Upload:
    """What a push sends: the files of a folder with their sizes in bytes, and the repository they go to."""

    folder: Path
    repository: str
    private: bool
    files: tuple[tuple[str, int], ...]
    hub: str

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.files)


def plan_upload(folder: Path, repository: str, private: bool = False) -> Upload:
    """What a push of the checkpoint in `folder` would send to `repository` (owner/name). Nothing is sent.

    Hidden files stay here.

    Raises InputError for a folder that is no checkpoint, or a name that the Hub would not take.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise InputError(
            f"folder {str(folder)!r} is no checkpoint (a config.json and safetensors weights): name one that "
            "`slim prune` made."
        )
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(f"repository {repository!r} is no name for the Hub: {first_line(error)}.") from error
    if "/" not in repository:
        raise InputError(f"repository {repository!r} lacks its owner: write owner/{repository}.")
    found = sorted(folder.rglob("*"))
    if link := next((path for path in found if path.is_symlink()), None):
        raise InputError(f"folder {str(folder)!r}: {link.name!r} in it is a link: put the file itself there.")
    names = [path.relative_to(folder) for path in found if path.is_file()]
    shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    contents = ((name.as_posix(), content(folder, name.as_posix())) for name in shown)
    files = tuple((name, len(sent) if isinstance(sent, bytes) else sent.stat().st_size) for name, sent in contents)
    return Upload(folder, repository, private, files, without_secrets(constants.ENDPOINT))


def content(folder: Path, name: str) -> bytes | Path:
    """What is sent of a file: itself, but of the plan a copy in which folders of this machine are names alone."""
    if name != PLAN_FILE:
        return folder / name
    plan = load_plan(folder / name)
    source = Path(plan.model.source).name if Path(plan.model.source).is_absolute() else plan.model.source
    changed = {"calibration": Path(plan.calibration).name, "model": plan.model.model_copy(update={"source": source})}
    return plan.model_copy(update=changed).model_dump_json(indent=1).encode()


def push(upload: Upload, progress: Progress = silent) -> str:
    """Sends it, to a repository that is made if there is none; the page of what was made there.

    The token is that of `hf auth login`, or HF_TOKEN. Files of these names that are there already are replaced.

    Raises InputError without a token, where the Hub refuses it, or for a private push to a repository that is open;
    SlimError when the Hub cannot be reached or fails.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if get_token() is None:
        raise InputError("token: there is none for the Hub: run `hf auth login`, or set HF_TOKEN.")
    api = HfApi(library_name="slim")
    try:
        progress(0, 2, f"Making {upload.repository}")
        made = api.create_repo(upload.repository, private=upload.private or None, exist_ok=True)
        if upload.private and not api.repo_info(upload.repository).private:
            raise InputError(
                f"repository {upload.repository!r} is there already and open to everyone: name another, "
                "or send it without `private`."
            )
        progress(1, 2, f"Sending {upload.bytes / 1e6:,.1f} MB")
        api.create_commit(
            upload.repository,
            [CommitOperationAdd(name, content(upload.folder, name)) for name, _ in upload.files],
            commit_message="Upload a model pruned with Slim",
        )
    except InputError:
        raise
    except OfflineModeIsEnabled as error:
        raise SlimError("the Hub was not reached: HF_HUB_OFFLINE is set; unset it and push again.") from error
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise InputError(
                f"repository {upload.repository!r}: the Hub does not let your token write there "
                f"({error.response.status_code}): check the owner, and that the token may write."
            ) from error
        raise SlimError(f"the Hub did not take {upload.repository!r}: {first_line(error)}.") from error
    except Exception as error:  # the client's errors come from a library that changes between its versions
        raise SlimError(f"{upload.repository!r} was not sent to {upload.hub}: {first_line(error)}.") from error
    progress(2, 2, "Sent")
    return str(made)
