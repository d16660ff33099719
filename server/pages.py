"""Pages for people, made here and complete in themselves: they load nothing from elsewhere, so they work offline."""

import json
from html import escape
from typing import Any

STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
code,pre,textarea,input{font:14px/1.45 ui-monospace,monospace}pre,textarea{background:#f4f6f8;border:1px solid #d8dee4;
border-radius:6px;padding:.6rem;overflow:auto;width:100%;box-sizing:border-box}table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.25rem .6rem .25rem 0;border-bottom:1px solid #e6e9ed}
details{border:1px solid #d8dee4;border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}summary{cursor:pointer}
b.m{display:inline-block;width:4.5rem}a{color:#0b5cad}button{font:inherit;padding:.2rem .8rem}
@media(prefers-color-scheme:dark){body{color:#e6e9ed;background:#14171b}pre,textarea,input{background:#1e2329;color:inherit;
border-color:#3a424b}details,td,th{border-color:#3a424b}a{color:#7cb8f5}}
"""
TRY = """
async function send(b){const d=b.closest('details'),out=d.querySelector('pre.out'),t=d.querySelector('textarea');
const key=document.getElementById('key').value,h={};if(key)h.Authorization='Bearer '+key;
if(t)h['Content-Type']='application/json';
try{const r=await fetch(d.querySelector('input.path').value,{method:b.dataset.method,headers:h,
body:t?t.value:undefined});
const text=await r.text();let shown=text;try{shown=JSON.stringify(JSON.parse(text),null,2)}catch(e){}
out.textContent=r.status+' '+r.statusText+'\\n'+shown}catch(e){out.textContent=e}}
"""


def page(title: str, body: str, script: str = "") -> str:
    """A whole HTML page; `body` is HTML, `title` is text."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
        f"<body>{body}<script>{script}</script></body></html>"
    )


def docs(document: dict[str, Any]) -> str:
    """The page at /docs: every operation of an OpenAPI document, with its example ready to be sent."""
    parts = [f"<h1>{escape(document['info']['title'])} {escape(document['info']['version'])}</h1>"]
    parts += [f"<p>{_text(p)}</p>" for p in document["info"]["description"].strip().split("\n\n")]
    parts.append('<p><label>API key, if the server wants one: <input id="key" type="password"></label></p>')
    for tag in document["tags"]:
        parts.append(f"<h2>{escape(tag['name'])}</h2><p>{escape(tag['description'])}</p>")
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation.get("tags", []):
                    parts.append(_operation(path, method.upper(), operation))
    parts.append("<h2>Objects</h2>")
    for name, schema in document["components"]["schemas"].items():
        parts.append(f'<h3 id="{escape(name)}">{escape(name)}</h3>{_object(schema)}')
    return page(document["info"]["title"] + " API", "\n".join(parts), TRY)


def _operation(path: str, method: str, operation: dict[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{escape(p['name'])}</code></td><td>{escape(p['in'])}, {_kind(p['schema'])}</td>"
        f"<td>{_text(p.get('description', p['schema'].get('description', '')))}</td></tr>"
        for p in operation.get("parameters", [])
    ]
    body, examples = "", []
    for media, content in operation.get("requestBody", {}).get("content", {}).items():
        rows.append(f"<tr><td>body</td><td>{_kind(content['schema'])}</td><td>{escape(media)}</td></tr>")
        if "json" in media:
            first, *others = content["examples"].items()
            body = f"<textarea rows=8>{_json(first[1]['value'])}</textarea>"
            examples += [_example(f"Request: {name}", example["value"]) for name, example in others]
        else:
            examples.append(_example("Request", operation["requestBody"]["description"]))
    answers = []
    for status, response in operation["responses"].items():
        contents = response["content"].values()
        examples += [_example(f"Answer {status}", each["example"]) for each in contents if "example" in each]
        kinds = ", ".join(_kind(content["schema"]) for content in contents)
        names = " ".join(f"`{name}`" for content in contents for name in content.get("examples", {}))
        answers.append(
            f"<tr><td>{status}</td><td>{kinds}</td><td>{escape(response['description'])} {_text(names)}</td></tr>"
        )
    return (
        f'<details><summary><b class="m">{method}</b> <code>{escape(path)}</code> {escape(operation["summary"])}'
        f"</summary><p>{_text(operation['description'])}</p><table>{''.join(rows)}</table>"
        f"<h4>Answers</h4><table>{''.join(answers)}</table>{''.join(examples)}<h4>Try it</h4>"
        f'<p><input class="path" size="60" value="{escape(path)}"> '
        f'<button data-method="{method}" onclick="send(this)">Send</button></p>{body}<pre class="out"></pre></details>'
    )


def _example(title: str, value: Any) -> str:
    text = escape(value) if isinstance(value, str) else _json(value)
    return f"<details><summary>{escape(title)}</summary><pre>{text}</pre></details>"


def _json(value: Any) -> str:
    return escape(json.dumps(value, indent=2))


def _object(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        f"<tr><td><code>{escape(name)}</code></td><td>{_kind(field)}{'' if name in required else ', optional'}</td>"
        f"<td>{_text(_about(field))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    ]
    return f"<p>{_text(schema.get('description', ''))}</p><table>{''.join(rows)}</table>"


def _about(field: dict[str, Any]) -> str:
    alternatives = [about for part in field.get("anyOf", []) if (about := part.get("description"))]
    about = field.get("description") or " ".join(alternatives)
    return f"{about} Default: {json.dumps(field['default'])}." if "default" in field else about


def _kind(schema: dict[str, Any]) -> str:
    """A schema's type in a few words of HTML, with links to the objects."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[1])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(part) for part in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    bounds = [f"from {schema['minimum']}"] if "minimum" in schema else []
    bounds += [f"to {schema['maximum']}"] if "maximum" in schema else []
    return escape(" ".join([str(schema.get("type", "anything")), *bounds]))


def _text(text: str) -> str:
    """Plain text as HTML; what stands between backticks as code."""
    pieces = escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))
