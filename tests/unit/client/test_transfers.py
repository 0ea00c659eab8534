"""What a terminal shows of an upload, up to the gateway's answer."""

from io import StringIO

from rich.console import Console
from rich.progress import Progress, TextColumn

from madpo_client.progress import TransferView


def test_an_upload_is_said_to_be_checked_once_all_of_it_is_sent() -> None:
    console = Console(file=StringIO(), width=100)
    progress = Progress(TextColumn("{task.description}|{task.fields[count]}"), console=console, disable=True)
    view = TransferView(progress, "Uploading pairs", 3_000)

    def shown() -> tuple[str, str, float | None]:
        (task,) = progress.tasks
        return task.description, str(task.fields["count"]).partition(",")[0], task.total

    view.on_bytes(1_000)
    sending = shown()
    view.on_bytes(2_000)
    sent = shown()
    view.on_rows(1_234)
    checking = shown()
    view.on_rows(5_678)

    assert sending == ("Uploading pairs", "1.0 kB/3.0 kB", 3_000)
    assert sent == ("Uploading pairs: sent; the gateway checks and stores it", "", None)
    assert checking == ("Uploading pairs: sent; checking rows: 1,234", "", None)
    assert shown()[0] == "Uploading pairs: sent; checking rows: 5,678"


def test_rows_are_said_to_be_checked_only_while_that_is_known() -> None:
    view = TransferView(progress := Progress(disable=True), "Uploading model", None)

    view.on_bytes(2_000)

    (task,) = progress.tasks
    assert (task.description, task.fields["count"]) == ("Uploading model", "2.0 kB")
