"""What the site has beyond docs/: pages that lie elsewhere in the repository, the reference, and the links between.

The pages link one another as files of the repository, so that they can be read there. In the site a link goes to the
page made from the file; what is no page, such as a Python file, stays as its name.
"""
from __future__ import annotations

import posixpath
import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = {'index.md': 'README.md', 'CHANGELOG.md': 'CHANGELOG.md', 'CONTRIBUTING.md': 'CONTRIBUTING.md',
             'weights.md': 'udl_basicsr/weights/README.md'}
REFERENCE = {'losses': 'Losses', 'archs': 'Networks', 'metrics': 'Metrics', 'functional': 'Formulas'}
_ROLE = re.compile(r':\w+:`~?(?:[\w.]*\.)?(\w+)`')
_PRODUCT = re.compile(r'(?<=[\w)\]])\*(?=[\w(\[])')
_LINK = re.compile(r'(!?)\[([^\]]*)\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)')


def on_files(files, config):
    """Adds the pages that are not files in docs/."""
    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding='utf-8')))
    for layer, title in REFERENCE.items():
        files.append(File.generated(config, f'reference/{layer}.md', content=f'# {title}\n\n::: udl_basicsr.{layer}\n'))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links between files of the repository into links between pages."""
    here = page.file.src_uri
    return link_pages(markdown, here, {file.src_uri for file in files if file.inclusion.is_included()})


def link_pages(markdown: str, page: str, pages: set[str]) -> str:
    """The text of a page with its links put right.

    Args:
        markdown: Its text, whose links are relative to the file that it comes from.
        page: Its name in the site.
        pages: The names of all pages and pictures of the site.
    """
    folder = posixpath.dirname(ELSEWHERE.get(page, f'docs/{page}'))
    made_of = {source: name for name, source in ELSEWHERE.items()}

    def put_right(link: re.Match) -> str:
        picture, text, target, anchor = link.groups('')
        file = posixpath.normpath(posixpath.join(folder, target))
        name = made_of.get(file, file.removeprefix('docs/') if file.startswith('docs/') else '')
        if name not in pages:
            return text
        return f'{picture}[{text}]({posixpath.relpath(name, posixpath.dirname(page) or ".")}{anchor})'

    return _LINK.sub(put_right, markdown)


class Docstrings(griffe.Extension):
    """Docstrings are reStructuredText, and the site reads Markdown: roles become names, and k*z is no emphasis."""

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            obj.docstring.value = _PRODUCT.sub(r'\\*', _ROLE.sub(r'`\1`', obj.docstring.value))
