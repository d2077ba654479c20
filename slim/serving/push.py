"""Push a checkpoint to a model Hub: list the files and the repository first, then send them by the Hub's client."""

from dataclasses import dataclass
from pathlib import Path

from slim.core.errors import InputError, SlimError, without_secrets
from slim.core.hub import first_line
from slim.core.reporter import SILENT, Reporter
from slim.models.original import PLAN_FILE
from slim.planning.files import load_plan
from slim.serving.request import PushRequest


@dataclass(frozen=True)
class Upload:
    """Contents of a push: the files of a folder with their sizes in bytes, and the repository that receives them."""

    folder: Path
    repository: str
    private: bool
    files: tuple[tuple[str, int], ...]
    hub: str

    @property
    def bytes(self) -> int:
        """Bytes of all files together."""
        return sum(size for _, size in self.files)


def plan_upload(folder: Path, repository: str, private: bool = False) -> Upload:
    """Return the contents of a push of the checkpoint in `folder` to `repository` (owner/name), without sending them.

    Hidden files are left out.

    Raises InputError for a folder without a checkpoint, and for a name that the Hub would refuse.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise InputError(
            f"folder={str(folder)!r}: it is not a checkpoint with a config.json and safetensors weights; name one that "
            "`slim prune` made."
        )
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(
            f"repository={repository!r}: the Hub does not take this name ({first_line(error)}); write owner/name."
        ) from error
    if "/" not in repository:
        raise InputError(f"repository={repository!r}: it lacks its owner; write owner/{repository}.")
    found = sorted(folder.rglob("*"))
    if link := next((path for path in found if path.is_symlink()), None):
        raise InputError(f"folder={str(folder)!r}: {link.name!r} in it is a link; put the file itself there.")
    names = [path.relative_to(folder) for path in found if path.is_file()]
    shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    contents = ((name.as_posix(), content(folder, name.as_posix())) for name in shown)
    files = tuple((name, len(sent) if isinstance(sent, bytes) else sent.stat().st_size) for name, sent in contents)
    return Upload(folder, repository, private, files, without_secrets(constants.ENDPOINT))


def content(folder: Path, name: str) -> bytes | Path:
    """Return the file to send; for the plan, the bytes of a copy without the paths of this machine."""
    if name != PLAN_FILE:
        return folder / name
    plan = load_plan(folder / name)
    source = Path(plan.model.source).name if Path(plan.model.source).is_absolute() else plan.model.source
    changed = {"calibration": Path(plan.calibration).name, "model": plan.model.model_copy(update={"source": source})}
    return plan.model_copy(update=changed).model_dump_json(indent=1).encode()


def push(request: PushRequest, reporter: Reporter = SILENT) -> str:
    """Send a checkpoint to a Hub, and return the URL of its repository. Raises as `plan_upload` and `send` do."""
    return send(plan_upload(Path(request.folder), request.repository, request.private), reporter)


def send(upload: Upload, reporter: Reporter = SILENT) -> str:
    """Send files to a repository, which is created where it does not exist, and return its URL.

    The token is that of `hf auth login`, or HF_TOKEN. Existing files of the same names are replaced.

    Raises InputError without a token, where the Hub refuses it, and for a private push to a public repository;
    SlimError where the Hub cannot be reached or fails.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if get_token() is None:
        raise InputError("token: no token for the Hub was found; run `hf auth login`, or set HF_TOKEN.")
    api = HfApi(library_name="slim")
    try:
        reporter.progress(0, 2, f"Creating {upload.repository}")
        made = api.create_repo(upload.repository, private=upload.private or None, exist_ok=True)
        if upload.private and not api.repo_info(upload.repository).private:
            raise InputError(
                f"repository={upload.repository!r}: it exists and is public; name another, or leave out `private`."
            )
        reporter.progress(1, 2, f"Sending {upload.bytes / 1e6:,.1f} MB")
        api.create_commit(
            upload.repository,
            [CommitOperationAdd(name, content(upload.folder, name)) for name, _ in upload.files],
            commit_message="Upload a model pruned with Slim",
        )
    except InputError:
        raise
    except OfflineModeIsEnabled as error:
        raise SlimError("HF_HUB_OFFLINE: it is set, so the Hub was not reached; unset it and push again.") from error
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise InputError(
                f"repository={upload.repository!r}: the Hub does not let your token write there "
                f"({error.response.status_code}); check the owner, and that the token may write."
            ) from error
        raise SlimError(
            f"repository={upload.repository!r}: the Hub did not accept it ({first_line(error)}); try again later."
        ) from error
    except Exception as error:  # the client raises errors of its HTTP library, which differ between versions
        raise SlimError(
            f"repository={upload.repository!r}: it was not sent to {upload.hub} ({first_line(error)}); "
            "check the connection."
        ) from error
    reporter.progress(2, 2, "Sent")
    return str(made)
