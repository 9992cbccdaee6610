"""Real English text that a Debian system carries: manual pages and Python docstrings.

For training and for the real half of evaluation filler, read where it is used and never shipped:
the pages belong to their authors. What a machine has installed differs, so evaluation documents
with real filler are the same only on the same machine; `split` follows from the file's name.
"""
import argparse
import ast
import glob
import gzip
import hashlib
import os
import re

MANUAL_PAGES = "/usr/share/man/man[1-8]/*.gz"
PYTHON_SOURCES = "/usr/lib/python3*/**/*.py"
PASSAGE_CHARACTERS = 12000  # of one file, at most, so that no program dominates
SKIPPED_PAGES = ("gcloud", "gsutil")  # thousands of generated pages that are nearly the same
VALIDATION_SHARE = 25       # one file in so many is for validation

HEADINGS = ("SH", "SS", "Sh", "Ss")
ROFF_TEXT = re.compile(r"\.\s?(SH|SS|Sh|Ss|B|I|BR|IR|RB|RI|BI|IB|Nm|Fl|Ar|Xr|It|IP|TP)\s+(.*)")
ROFF_PARAGRAPH = re.compile(r"\.(PP|P|LP|Pp|IP|TP|It)")
ROFF_FORMAT = re.compile(r"\\f(\[\w*\]|\(..|.)|\\[&|^/,)]|\\s[-+]?\d|\\m\[\w*\]")
ROFF_STRING = re.compile(r"\\\*?\(..|\\\*?\[[^\]]*\]")
ROFF_ESCAPES = [("\\-", "-"), ("\\(aq", "'"), ("\\(cq", "'"), ("\\(oq", "'"), ("\\e", "\\"),
                ("\\ ", " "), ("\\(lq", '"'), ("\\(rq", '"'), ("\\'", "'")]


def plain_roff(source):
    """The text of a manual page without its markup; '' for a page that only includes another."""
    if source.startswith(".so"):
        return ""
    lines = []
    for line in source.split("\n"):
        if line.startswith(("'", "\\\"")):
            continue
        if not line.startswith("."):
            lines.append(line)
            continue
        macro = ROFF_TEXT.match(line)
        if macro and macro[1] in HEADINGS:
            lines.append("\n\n" + macro[2].strip('"').capitalize() + "\n")
        elif macro and macro[1] not in ("IP", "It", "TP"):
            lines.append(macro[2].replace('"', ""))
        elif ROFF_PARAGRAPH.match(line):
            lines.append("\n\n")
    text = ROFF_FORMAT.sub("", " ".join(lines))
    for escape, character in ROFF_ESCAPES:
        text = text.replace(escape, character)
    text = ROFF_STRING.sub("", text)
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r" ?\n ?", "\n", text)
    return re.sub(r"\n{2,}", "\n\n", text).strip()


def manual_page(path):
    with gzip.open(path, "rt", errors="ignore") as file:
        text = plain_roff(file.read(200000))
    return text if len(text) >= 1500 else ""


def docstrings(path):
    with open(path, errors="ignore") as file:
        tree = ast.parse(file.read())
    nodes = (node for node in ast.walk(tree)
             if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)))
    text = "\n\n".join(d for d in map(ast.get_docstring, nodes) if d and len(d) > 80)
    return text if len(text) > 800 else ""


def name_hash(path):
    """Orders files and splits them, the same on every run and every machine."""
    return int(hashlib.sha256(os.path.basename(path).encode()).hexdigest(), 16)


def passages(split, characters=12_000_000):
    """Texts of the machine's documentation, up to so many characters in all, at most half of each
    source while the other one lasts; [] on a machine that has none."""
    found = []
    for pattern, read in ((MANUAL_PAGES, manual_page), (PYTHON_SOURCES, docstrings)):
        left = characters // 2
        for path in sorted(glob.glob(pattern, recursive=True), key=lambda p: (name_hash(p), p)):
            validation = name_hash(path) % VALIDATION_SHARE == 0
            if left <= 0:
                break
            if os.path.islink(path) or os.path.basename(path).startswith(SKIPPED_PAGES):
                continue
            if validation != (split == "validation"):
                continue
            try:
                text = read(path)
            except (OSError, EOFError, SyntaxError, ValueError, RecursionError):
                continue
            text = text.encode("ascii", "ignore").decode()[:PASSAGE_CHARACTERS]
            if text:
                found.append((name_hash(path), text))
                left -= len(text)
    return [text for _, text in sorted(found)]


class RealFiller:
    """Scraps of real text to use as filler sentences: an instance is called with a generator."""

    def __init__(self, texts):
        self.text = "\n\n".join(texts)
        self.starts = [match.end() for match in re.finditer(r"\.(?=\s)", self.text)]

    def __bool__(self):
        return len(self.starts) > 100

    def __call__(self, rng):
        """36 to 180 characters from the start of a sentence, cut at a word, ended by a period."""
        start = rng.choice(self.starts)
        scrap = self.text[start:start + rng.randrange(36, 180)]
        return scrap.rsplit(None, 1)[0].rstrip(" .,;:\n") + "."


def main():
    parser = argparse.ArgumentParser(description="Collect documentation text for training.")
    parser.add_argument("--work", required=True,
                        help="folder for real_train.txt and real_validation.txt")
    arguments = parser.parse_args()
    os.makedirs(arguments.work, exist_ok=True)
    for split in ("train", "validation"):
        texts = passages(split)
        with open(os.path.join(arguments.work, f"real_{split}.txt"), "w") as file:
            file.write("\0".join(texts))
        print(f"{split}: {len(texts)} passages, {sum(map(len, texts))} characters")


if __name__ == "__main__":
    main()
