"""What outputs and results depend on: the modules that a piece of code reaches, and the data.

Code is followed by its imports, name by name: `citynb.say` and `from citynb import say` reach the
module that defines `say`, not all that `citynb/__init__.py` imports. What no import shows, strings
show: a dataset's name reaches its module, its files and, beside a use of `results`, its stored
results. Comments, docstrings and layout are not part of any fingerprint.
"""

import ast
import functools
import hashlib
import re
from pathlib import Path

NO_DATA = (".md", ".py", ".pyc")  # files of a data folder that no loader reads


def digest(*parts):
    """Return the sha256 of some texts or bytes, as hex digits."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part if isinstance(part, bytes) else part.encode())
        total.update(b"\0")
    return total.hexdigest()


def code_without_words(source):
    """Return a text that changes when the code changes, not when a comment or docstring does.

    It is the same under every Python from 3.11 on, unlike the text of `ast.dump`.

    Raises:
        SyntaxError: the source is not Python.
    """

    def text(node):
        if isinstance(node, list):
            return "[" + ",".join(map(text, node)) + "]"
        if not isinstance(node, ast.AST):
            return repr(node)
        fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
        return (
            f"{type(node).__name__}("
            + ",".join(f"{name}={text(value)}" for name, value in fields)
            + ")"
        )

    return text(_tree_without_docstrings(source))


def reached(sources, root):
    """Return the files of this repository's modules that some code reaches, sorted.

    Args:
        sources: a list of Paths of modules, which are part of the answer, or a str of code.
        root: Path of the repository. A module is first-party when it lies below it.
    """
    root = Path(root).resolve()
    return sorted(_walk(sources, root)[0])


def data_files(sources, root):
    """Return the files of data, weights and stored results that some code names, sorted.

    A folder `data/<name>` or `models/<name>` counts when the code, or a module that it reaches, holds
    `"<name>"` or `"...data/<name>..."` as a string; `experiments/results/<name>` when the code itself
    does and also uses the name `results`. Who confirmed stored results is not part of them.
    """
    root = Path(root).resolve()
    files, strings, names = _walk(sources, root)
    strings = set(strings).union(
        *(_read(path, root).strings for path in files if path.name != "__init__.py")
    )
    folders = [*(root / "data").glob("*/"), *(root / "models").glob("*/")]
    if "results" in names:
        folders += (root / "experiments" / "results").glob("*/")
    return sorted(
        path
        for folder in folders
        if _names_folder(strings, folder)
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in NO_DATA and path.name != "confirmed.json"
    )


def code_fingerprint(paths, root):
    """Return the sha256 of modules: their places below `root` and their code without words."""
    parts = []
    for path in sorted(paths):
        parts += [path.relative_to(root).as_posix(), _read(path, root).code]
    return digest(*parts)


def data_fingerprint(paths, root):
    """Return the sha256 of data files: their places below `root` and their bytes."""
    parts = []
    for path in sorted(paths):
        parts += [path.relative_to(root).as_posix(), _file_digest(path, path.stat().st_mtime_ns)]
    return digest(*parts)


# --- one file ---------------------------------------------------------------------------


class _Code:
    """What one piece of code imports, and which strings and names it holds."""

    def __init__(self, source, package=""):
        """`package`: the dotted name that relative imports start from."""
        tree = _tree_without_docstrings(source)
        self.code = code_without_words(source)
        self.imports = {}  # the name that it binds: (module, names in that module)
        self.modules = []  # that `import` names
        self.defines = set()  # names bound at the top level by other means than an import
        self.strings, self.names, self.uses = set(), set(), set()
        inner = set()  # of a chain a.b.c, the nodes a and a.b
        for node in ast.walk(tree):  # parents come before children
            if isinstance(node, ast.Import):
                for alias in node.names:
                    top = alias.name.split(".")[0]
                    self.imports[alias.asname or top] = (alias.name if alias.asname else top, ())
                    self.modules.append(alias.name)
            elif isinstance(node, ast.ImportFrom):
                base = ".".join(package.split(".")[: 1 - node.level or None]) if node.level else ""
                module = ".".join(filter(None, (base, node.module)))
                for alias in node.names:
                    self.imports[alias.asname or alias.name] = (module, (alias.name,))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                self.strings.add(node.value)
            elif isinstance(node, ast.Attribute | ast.Name) and node not in inner:
                chain, base = [], node
                while isinstance(base, ast.Attribute):
                    chain.insert(0, base.attr)
                    base = base.value
                    inner.add(base)
                self.names.update(chain)
                if isinstance(base, ast.Name):
                    self.uses.add((base.id, *chain))
                    self.names.add(base.id)
        self.names.update(name for _, chain in self.imports.values() for name in chain)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                self.defines.add(node.name)
            for target in ast.walk(node) if isinstance(node, ast.Assign | ast.AnnAssign) else ():
                if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store):
                    self.defines.add(target.id)


def _read(path, root):
    return _read_once(path, root, path.stat().st_mtime_ns)


@functools.cache
def _read_once(path, root, _time):
    package = path.relative_to(root).parent.parts if path.is_relative_to(root) else ()
    return _Code(path.read_text(encoding="utf-8"), ".".join(package))


@functools.cache
def _file_digest(path, _time):
    return digest(path.read_bytes())


def _tree_without_docstrings(source):
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                del node.body[0]
    return tree


# --- from file to file ------------------------------------------------------------------


def _walk(sources, root):
    """Return the files that are reached, and the strings and names of the sources themselves."""
    if isinstance(sources, str):
        waiting, own = [], [_Code(sources)]
    else:
        waiting = [Path(path).resolve() for path in sources]
        own = [_read(path, root) for path in waiting]
    strings = set().union(*(code.strings for code in own))
    names = set().union(*(code.names for code in own))
    found = set()
    if isinstance(sources, str):
        waiting += _next(own[0], root)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _next(_read(path, root), root)
    return found, strings, names


def _next(code, root):
    """Return the files that one piece of code reaches at once."""
    targets = [(name, ()) for name in code.modules if not _is_package(name, root)]
    for name, (module, chain) in code.imports.items():
        if _is_package(".".join((module, *chain)), root):  # what is used of it counts
            targets += [(module, (*chain, *use[1:])) for use in code.uses if use[0] == name]
        else:
            targets.append((module, chain))
    targets += [
        (text, ()) for text in code.strings if re.fullmatch(r"[a-z_]\w{0,40}(\.\w{1,40})+", text)
    ]
    files = set().union(*(_files(module, chain, root) for module, chain in targets))
    # the registry of datasets loads a module by its name
    for text in code.strings:
        module = root / "citynb" / "datasets" / f"{text}.py"
        if re.fullmatch(r"[a-z]\w*", text) and module.is_file():
            files.add(module)
    return files


def _files(module, chain, root):
    """Return the files that define `module.chain[0].chain[1]...`: none or one.

    `module` is a module's name; the names of the chain are looked up as Python does it, first
    among what a package's `__init__.py` binds, then among its modules.
    """
    place = root.joinpath(*module.split("."))
    if not place.is_dir():
        file = place.with_name(f"{place.name}.py")
        return {file} if file.is_file() else set()
    start = place / "__init__.py"
    whole = {start} if start.is_file() else set()
    if not chain or chain[0] == "*":
        return whole
    if whole:
        code = _read(start, root)
        origin = code.imports.get(chain[0])
        if origin and origin != (module, chain[:1]):
            return _files(origin[0], (*origin[1], *chain[1:]), root)
        if chain[0] in code.defines:
            return whole
    inner = _files(f"{module}.{chain[0]}", chain[1:], root)
    return inner or whole


def _is_package(dotted, root):
    return root.joinpath(*dotted.split(".")).is_dir()


def _names_folder(strings, folder):
    pattern = re.compile(rf"\b{folder.parent.name}/{re.escape(folder.name)}\b")
    return folder.name in strings or any(map(pattern.search, strings))
