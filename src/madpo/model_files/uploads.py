"""What of a model directory is taken."""

from pathlib import Path

from madpo.errors import FieldViolation, InvalidArgumentError
from madpo.model_files.configs import MODEL_SUFFIXES, check_config
from madpo.model_files.tensors import read_header


def check_files(directory: Path) -> None:
    """Refuse anything but weights in safetensors, configuration and tokenizer files.

    Raises:
        InvalidArgumentError: With one violation per unsafe or broken file.
    """
    files = sorted(path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    faults = [(path.relative_to(directory).as_posix(), _fault(path)) for path in files]
    violations = [FieldViolation(f"files.{path}", fault) for path, fault in faults if fault]
    if not any(path.suffix == ".safetensors" for path in files):
        violations.append(FieldViolation("files", "no .safetensors file: save the weights in that format"))
    if violations:
        raise InvalidArgumentError.of(violations, what="the model cannot be taken")
    check_config(directory)


def _fault(path: Path) -> str:
    """What is wrong with a file, "" when nothing is."""
    if path.is_symlink() or not path.is_file():
        return "not a regular file"
    if path.suffix not in MODEL_SUFFIXES:
        return f"only {', '.join(sorted(MODEL_SUFFIXES))} files are taken"
    if path.suffix == ".safetensors":
        try:
            read_header(path)
        except InvalidArgumentError as error:
            return str(error).removeprefix(f"{path.name}: ")
    return ""
