import subprocess
import sys

import pytest
from written_files import read_all, texts, write_bytes

from retro_lab.corpus.documents import rejection
from retro_lab.corpus.sources.python_source import FILES_IN_PART, PythonSource
from retro_lab.errors import ConfigurationError, CorpusError

FILES = {
    "__init__.py": b"raise RuntimeError('imported')\n",
    "models/alpha/modeling_alpha.py": b"alpha = 1\n",
    "models/beta/modeling_beta.py": b"beta = 2\n",
    "models/beta/copy_of_alpha.py": b"alpha = 1\n",
    "models/beta/tables.py": b"TABLE = (" + b"0, " * 1000 + b")\n",
    "data/notes.txt": b"no source\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Folder of an installed package `sample_package` that cannot be imported."""
    for name, content in FILES.items():
        write_bytes(tmp_path / "sample_package" / name, content)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "sample_package"


def ids(source):
    return [document.id for _, document in read_all(source)]


@pytest.mark.usefixtures("package")
def test_reads_each_content_once_by_name_without_importing():
    assert ids(PythonSource(["sample_package"])) == [
        "sample_package/__init__.py",
        "sample_package/models/alpha/modeling_alpha.py",
        "sample_package/models/beta/modeling_beta.py",
        "sample_package/models/beta/tables.py",
    ]
    assert "sample_package" not in sys.modules


@pytest.mark.usefixtures("package")
def test_patterns_and_file_size_choose_the_files():
    def chosen(**options):
        return [name.removeprefix("sample_package/") for name in ids(PythonSource(["sample_package"], **options))]

    modeling = ["models/alpha/modeling_alpha.py", "models/beta/modeling_beta.py"]
    assert chosen(include=["models/*/modeling_*.py"]) == modeling
    assert chosen(include=["models/**/*.py"], exclude=["**/tables.py", "models/beta/copy*"]) == modeling
    assert "models/beta/tables.py" in chosen()
    assert "models/beta/tables.py" not in chosen(max_file_bytes=1000)
    assert chosen(include=["**/*.txt"]) == ["data/notes.txt"]


def test_document_holds_the_text_and_a_file_that_is_not_utf8_is_told(package):
    (package / "latin.py").write_bytes(b"# sum\xe9\n")
    documents = {document.id: document for _, document in read_all(PythonSource(["sample_package"]))}
    assert documents["sample_package/models/beta/modeling_beta.py"].text == "beta = 2\n"
    assert documents["sample_package/models/beta/modeling_beta.py"].source == "sample_package"
    assert rejection(documents["sample_package/latin.py"].text) == "not UTF-8"


def test_files_are_grouped_into_parts(package):
    for number in range(FILES_IN_PART):
        (package / f"module_{number:03d}.py").write_text(f"x = {number}\n")
    source = PythonSource(["sample_package"])
    assert source.parts() == 2
    assert len(list(source.read(0))) == FILES_IN_PART
    assert ids(source) == sorted(ids(source))


def test_a_byte_budget_takes_whole_files_and_a_larger_one_takes_them_too(package):
    for number in range(100):
        (package / f"module_{number:03d}.py").write_text("x" * 90 + f" = {number:03d}\n")
    options = {"packages": ["sample_package"], "include": ["module_*.py"]}
    small, large = PythonSource(**options, max_bytes=1000), PythonSource(**options, max_bytes=5000)
    assert 900 < sum(map(len, texts(small))) <= 1000
    assert set(ids(small)) < set(ids(large))
    assert ids(small) != ids(PythonSource(**options))[: len(ids(small))]
    assert read_all(small) == read_all(PythonSource(**options, max_bytes=1000))


def test_identity_is_of_contents_not_of_places(package, tmp_path, monkeypatch):
    source = PythonSource(["sample_package"], validation_fraction=0.25, test_fraction=0.25)
    before = source.identity()
    assert str(tmp_path) not in str(before)
    elsewhere = tmp_path / "elsewhere"
    for name in reversed(FILES):
        write_bytes(elsewhere / "sample_package" / name, FILES[name])
    monkeypatch.syspath_prepend(elsewhere)
    moved = PythonSource(["sample_package"], validation_fraction=0.25, test_fraction=0.25)
    assert moved.identity() == before
    assert read_all(moved) == read_all(source)
    write_bytes(elsewhere / "sample_package/models/beta/modeling_beta.py", b"beta = 3\n")
    assert PythonSource(["sample_package"], validation_fraction=0.25, test_fraction=0.25).identity() != before


@pytest.mark.usefixtures("package")
def test_held_out_files_are_a_share_of_all():
    assert {
        split for split, _ in read_all(PythonSource(["sample_package"], validation_fraction=0.0, test_fraction=0.0))
    } == {"train"}
    assert "validation" in {
        split for split, _ in read_all(PythonSource(["sample_package"], validation_fraction=0.99, test_fraction=0.0))
    }


def test_a_module_of_one_file_is_its_own_package(tmp_path, monkeypatch):
    write_bytes(tmp_path / "lonely_module.py", b"lonely = True\n")
    write_bytes(tmp_path / "neighbor.py", b"other = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert ids(PythonSource(["lonely_module"])) == ["lonely_module.py"]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"packages": []}, ConfigurationError, "corpus.packages"),
        ({"packages": ["os.path"]}, ConfigurationError, "corpus.include"),
        ({"packages": ["no_such_package_here"]}, CorpusError, "pip install no_such_package_here"),
        ({"packages": ["hydr"]}, CorpusError, "did you mean 'hydra'"),
        ({"packages": ["hydra-core"]}, CorpusError, "import name is 'hydra'"),
        ({"packages": ["math"]}, CorpusError, "No Python source"),
        ({"packages": ["sample_package"], "include": ["*.rs"]}, CorpusError, "No file of sample_package"),
        ({"packages": ["sample_package"], "include": ["../*.py"]}, ConfigurationError, "without '..'"),
        ({"packages": ["sample_package"], "exclude": ["/etc/*"]}, ConfigurationError, "/etc/"),
        ({"packages": ["sample_package"], "max_bytes": 1.0}, CorpusError, "corpus.max_bytes"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_sentence(options, error, message):
    with pytest.raises(error, match=message.replace(".", r"\.")) as raised:
        PythonSource(**options).parts()
    assert "\n" not in str(raised.value)


def test_a_large_package_is_found_without_importing_it():
    script = (
        "import sys; from retro_lab.corpus.sources.python_source import PythonSource;"
        "source = PythonSource(['transformers'], include=['models/*/configuration_*.py'], max_bytes=1e5);"
        "print(len(list(source.read(0))) > 5, 'transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "False"]
