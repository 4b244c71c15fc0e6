#!/usr/bin/python
"""Ansible module that brings a host to the state of a netspace declaration, by ``python -m netspace``."""

from __future__ import annotations

import json

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: netspace
short_description: Isolated environments, their interfaces and links, as declared
description:
  - Makes the host as the declaration says, by C(python -m netspace apply). What is not declared is removed.
  - In check mode it runs C(python -m netspace plan), and changes nothing.
options:
  declaration:
    description: The declaration, which in a pillar file stands under C(netspace).
    type: dict
    required: true
  python:
    description: The host's Python that has netspace.
    type: path
    default: /usr/bin/python3
  instance:
    description: The instance whose records are used.
    type: str
    default: netspace
requirements: [netspace]
attributes:
  check_mode: {support: full}
  diff_mode: {support: full}
"""

EXAMPLES = r"""
- name: Environments and links
  netspace:
    declaration: "{{ lookup('file', 'shop.yaml') | from_yaml }}"
  become: true
"""

RETURN = r"""
steps:
  description: The changes that were made, or in check mode would be. One that failed has an C(error).
  type: list
  returned: always
problems:
  description: What could not be done, each with C(path) and C(message).
  type: list
  returned: always
notes:
  description: What is to be known besides.
  type: list
  returned: always
"""


def title(step: dict) -> str:
    return f"{step['action']} {step['kind']} {step['name']}"


def sides(step: dict, side: str) -> dict:
    """Return the old or the new values of a step's changes, by key."""
    return {key: value[side] for key, value in step["changes"].items()}


def main() -> None:
    options = {
        "declaration": {"type": "dict", "required": True},
        "python": {"type": "path", "default": "/usr/bin/python3"},
        "instance": {"type": "str", "default": "netspace"},
    }
    module = AnsibleModule(argument_spec=options, supports_check_mode=True)
    command = [module.params["python"], "-m", "netspace", "--instance", module.params["instance"]]
    command += ["plan" if module.check_mode else "apply", "-", "--json"]
    declared = json.dumps({"netspace": module.params["declaration"]})
    code, out, err = module.run_command(command, data=declared)
    try:
        answer = json.loads(out)
    except ValueError:
        module.fail_json(msg=f"{' '.join(command)}: exit code {code}: {err.strip() or out.strip()}")
    done = [step for step in answer["steps"] if not step["error"]]
    before = {title(step): sides(step, "old") for step in done if step["changes"]}
    after = {title(step): sides(step, "new") for step in done}
    answer["diff"] = {"before": before, "after": after}
    if answer["problems"]:
        told = "\n".join(f"{problem['path']}: {problem['message']}" for problem in answer["problems"])
        module.fail_json(msg=told, **answer)
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
