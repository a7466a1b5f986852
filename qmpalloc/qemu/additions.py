"""What a user adds to the reference recipe: files, a script that prepares the system, a kernel, a size.

All of it is looked for and read here, and becomes inputs of the build as the recipe's own files are. How it is put into
the new system says ``vm-images/additions.sh``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from msgspec import Struct

from qmpalloc.config import ImageConfig, KernelFiles, Origin
from qmpalloc.qemu.architecture import Architecture
from qmpalloc.qemu.inputs import InputFile
from qmpalloc.qemu.kernel_image import kernel_release

MODULES_HINT = "make modules_install INSTALL_MOD_PATH=DIR, then DIR/lib/modules/RELEASE"
HEADERS_HINT = "the source tree in which the kernel was built, or what its package of headers holds"


class Additions(Struct, frozen=True, order=True):
    """What an image has besides packages and the reference recipe. Paths are absolute.

    Attributes:
        files: Path in the guest, and the file or directory of the host that goes there.
        prepare: The script; empty: none.
        kernel: Name of the kernel's package, with ``/RELEASE`` of the archive that has it; empty: the recipe's.
        kernel_files: vmlinuz, modules and headers of a kernel of the user's; empty: none.
        size_bytes: Of the root file system; 0: the recipe's.
        origin: Where all this was written; no part of the image.
    """

    files: tuple[tuple[str, str], ...] = ()
    prepare: str = ""
    kernel: str = ""
    kernel_files: tuple[str, ...] = ()
    size_bytes: int = 0
    origin: Origin = Origin()

    @classmethod
    def of(cls, image: ImageConfig) -> Additions:
        """Return what a user's ``[image]`` adds."""
        at, kernel = image.origin.path, image.kernel
        own = (kernel.vmlinuz, kernel.modules, kernel.headers) if isinstance(kernel, KernelFiles) else ()
        return cls(
            files=tuple(sorted((place, str(at(source))) for place, source in image.files.items())),
            prepare=str(at(image.prepare)) if image.prepare else "",
            kernel=kernel if isinstance(kernel, str) else "",
            kernel_files=tuple(str(at(path)) for path in own),
            size_bytes=int(image.size),
            origin=image.origin,
        )

    @property
    def is_empty(self) -> bool:
        """True when the recipe is as it is."""
        return self == Additions(origin=self.origin)

    @property
    def words(self) -> list[str]:
        """What of it makes another image besides the content of files."""
        words = [f"kernel={self.kernel}"] if self.kernel else []
        return words + ([f"size={self.size_bytes}"] if self.size_bytes else [])

    def input_files(self, inputs_dir: str, script: Path, architecture: Architecture) -> Iterator[InputFile]:
        """Yield every file of it, for the directory `inputs_dir` of the build, and what puts them where they belong.

        Raises:
            ConfigError: One is not there, or cannot be read.
        """
        if self.is_empty:
            return
        yield InputFile(f"{inputs_dir}/{script.name}", script.read_bytes(), executable=False)
        for place, source in self.files:
            yield from self._tree("files", Path(source), f"{inputs_dir}/files{place}")
        if self.prepare:
            script = self._readable("prepare", Path(self.prepare))
            yield InputFile(f"{inputs_dir}/prepare", script.read_bytes(), executable=True)
        if self.kernel_files:
            yield from self._kernel_tree(f"{inputs_dir}/kernel", architecture)

    def _kernel_tree(self, place: str, architecture: Architecture) -> Iterator[InputFile]:
        vmlinuz, modules, headers = map(Path, self.kernel_files)
        sources = f"arch/{architecture.kernel_directory}"
        release = kernel_release(self._readable("kernel.vmlinuz", vmlinuz), architecture.kernel_format)
        if not release:
            message = f"{vmlinuz} is not a kernel that can be booted on {architecture.name}"
            hint = f"{sources}/boot/{architecture.kernel_format}, or /boot/vmlinuz-RELEASE"
            raise self.origin.error("kernel.vmlinuz", message, hint=hint)
        if modules.name != release:
            message = f"{modules} does not hold the modules of {release}, which {vmlinuz.name} is"
            raise self.origin.error("kernel.modules", message, hint=MODULES_HINT)
        if not any((modules / name).exists() for name in ("kernel", "modules.dep")):
            raise self.origin.error("kernel.modules", f"{modules} holds no modules", hint=MODULES_HINT)
        if not (headers / "include").is_dir():
            raise self.origin.error("kernel.headers", f"{headers} holds no kernel headers", hint=HEADERS_HINT)
        yield InputFile(f"{place}/release", release.encode(), executable=False)
        yield InputFile(f"{place}/vmlinuz", vmlinuz, executable=False)
        for found in self._tree("kernel.modules", modules, f"{place}/modules"):
            if found.place not in {f"{place}/modules/build", f"{place}/modules/source"}:  # of the machine that built it
                yield found
        for part in ("include", f"{sources}/include"):  # all that the probes include, of a tree that may be large
            if (headers / part).is_dir():
                yield from self._tree("kernel.headers", headers / part, f"{place}/headers/{part}")

    def _tree(self, key: str, source: Path, place: str) -> Iterator[InputFile]:
        """Yield a file, or all that is in a directory; links in it stay links."""
        if not source.is_dir():
            self._readable(key, source)
            yield InputFile(place, source, executable=os.access(source, os.X_OK))
            return
        for directory, names, files in os.walk(source, onerror=self._raise_at(key)):
            names.sort()
            for name in sorted(files + [name for name in names if Path(directory, name).is_symlink()]):
                path = Path(directory, name)
                inside = f"{place}/{path.relative_to(source).as_posix()}"
                if path.is_symlink():
                    yield InputFile(inside, b"", executable=False, link=os.fspath(path.readlink()))
                else:
                    self._readable(key, path)
                    yield InputFile(inside, path, executable=bool(path.stat().st_mode & stat.S_IXUSR))

    def _readable(self, key: str, path: Path) -> Path:
        """Return `path` once it is certain that it is a file that can be read."""
        try:
            with path.open("rb"):
                pass
            if not path.is_file():
                raise self.origin.error(key, f"{path} is not a file", hint=self.origin.relative)
        except OSError as error:
            raise self.origin.error(key, f"{path}: {error.strerror}", hint=self.origin.relative) from error
        return path

    def _raise_at(self, key: str) -> Callable[[OSError], None]:
        def handler(error: OSError) -> None:
            raise self.origin.error(key, f"{error.filename}: {error.strerror}", hint=self.origin.relative) from error

        return handler
