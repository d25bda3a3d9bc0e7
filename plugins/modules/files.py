#!/usr/bin/python
"""Write and remove a role's text files on a host in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: files
short_description: Write and remove many text files in one round trip
description:
  - Brings a list of text files to the wanted content, owner, group and mode, or removes them.
  - A module call costs about 0.75 seconds and two of them are behind every M(ansible.builtin.copy) or
    M(ansible.builtin.template). A role that lays down ten files in one call saves all but one of them.
  - Every new content is first written beside its destination and then renamed over it, so a reader sees the old or the
    new file and never half of one. All contents are on the disk before the first rename, so a full disk changes
    nothing.
  - A destination that is a mount point of its own, as C(/etc/hosts) is in a container, cannot be renamed over and is
    written in place.
  - The system log of the host gets the paths of a call, never the contents. A task that handles a secret needs
    C(no_log) all the same, because verbose output shows the arguments of a task.
version_added: 0.1.0
author: The metalhub maintainers
options:
  files:
    description: The files, in the order in which they are put in place.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description:
          - Absolute path of the file.
          - Missing parent directories are created with mode 0755, owned by root.
          - A symbolic link at this path is replaced, not followed.
        type: str
        required: true
      content:
        description: The whole text of the file. Required unless O(files[].state=absent).
        type: str
      owner:
        description: Name or number of the owner.
        type: str
        default: root
      group:
        description: Name or number of the group.
        type: str
        default: root
      mode:
        description: Permissions as a quoted string of four octal digits.
        type: raw
        default: "0644"
      state:
        description: Whether the file is there. A directory is never removed.
        type: str
        choices: [present, absent]
        default: present
      no_diff:
        description: Whether the content stays out of the diff.
        type: bool
        default: false
  pending_file:
    description:
      - Absolute path of a note on the host that keeps the paths which have changed until the role removes it, which it
        does once it has acted on them.
      - A run that ends between a change and the restart that the change needs would lose the restart, because the next
        run finds nothing to change. With the note, the next run still gets the paths in RV(pending_paths).
    type: path
attributes:
  check_mode:
    support: full
    description: Reports what would change and changes nothing.
  diff_mode:
    support: full
    description: Shows content, owner, group and mode before and after.
"""

EXAMPLES = r"""
- name: Write the configuration of time synchronisation and drop the file of an older release
  metalhub.platform.files:
    files:
      - path: /etc/chrony/conf.d/site.conf
        content: |
          server 192.0.2.1 iburst
      - path: /etc/chrony/site.keys
        content: "{{ vault_site_chrony_keys }}"
        group: _chrony
        mode: "0640"
        no_diff: true
      - path: /etc/chrony/sources.d/old.sources
        state: absent
  register: __node_time
  no_log: true
"""

RETURN = r"""
changed_paths:
  description: The paths that were written or removed, or would be in check mode, in the order given.
  type: list
  elements: str
  returned: always
  sample: [/etc/chrony/conf.d/site.conf]
pending_paths:
  description: The paths of RV(changed_paths) and those that an earlier run had noted in O(pending_file).
  type: list
  elements: str
  returned: always
  sample: [/etc/chrony/chrony.conf, /etc/chrony/conf.d/site.conf]
"""

import contextlib
import errno
import grp
import os
import pwd
import re
import stat
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule


class FilesError(Exception):
    """A reason to stop, in words: what, where, the value seen and the fix."""


class Wanted:
    """One entry of the argument `files`, checked and compared with what is on the disk.

    Reading happens in the constructor; nothing is written before `stage`.

    Raises FilesError when the entry cannot be meant, or the path holds something that this module never replaces.
    """

    def __init__(self, entry: dict[str, Any], *, check_mode: bool) -> None:
        """Compare `entry` with the disk; in check mode an owner that does not exist yet counts as a change."""
        self.path: str = entry["path"]
        self.present: bool = entry["state"] == "present"
        self.no_diff: bool = entry["no_diff"]
        self.owner: str = entry["owner"]
        self.group: str = entry["group"]
        self.content: bytes = b""
        self.staged: str | None = None
        if not os.path.isabs(self.path) or os.path.normpath(self.path) != self.path:
            raise FilesError(
                f"path {self.path!r} is not a plain absolute path; write it from / and without '..' or '//'"
            )
        mode = entry["mode"]
        if not isinstance(mode, str) or not re.fullmatch(r"[0-7]{4}", mode):
            raise FilesError(f'{self.path}: mode is {mode!r}; write four octal digits in quotes, such as mode: "0644"')
        self.mode: int = int(mode, 8)
        if self.present:
            if entry["content"] is None:
                raise FilesError(f"{self.path}: content is missing; give it, or set state: absent")
            self.content = entry["content"].encode("utf-8", "surrogateescape")
        self._read()
        self.uid: int | None = self._number(self.owner, "owner", check_mode)
        self.gid: int | None = self._number(self.group, "group", check_mode)

    def _read(self) -> None:
        """Take in what the path holds now."""
        self.before: bytes | None = None
        self.status: os.stat_result | None = None
        self.was_link = False
        try:
            status = os.lstat(self.path)
            if stat.S_ISLNK(status.st_mode):
                self.was_link = True
            elif stat.S_ISREG(status.st_mode):
                with open(self.path, "rb") as stream:
                    self.before = stream.read()
            else:
                kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
                raise FilesError(
                    f"{self.path} is {kind}; look at it with 'ls -la {self.path}' and remove it by hand if it may go"
                )
            self.status = status
        except FileNotFoundError:
            pass
        except NotADirectoryError as error:
            raise FilesError(
                f"{self.path}: a parent of it is a file, not a directory; remove that file by hand"
            ) from error
        except OSError as error:
            raise FilesError(f"{self.path}: cannot be read ({error.strerror}); run with become, as root") from error

    def _number(self, name: str, kind: str, check_mode: bool) -> int | None:
        """Return the number of an owner or group, or None for one that a real run would have created by now."""
        if name.isdigit() or not self.present:
            return int(name) if name.isdigit() else None
        try:
            return pwd.getpwnam(name).pw_uid if kind == "owner" else grp.getgrnam(name).gr_gid
        except KeyError as error:
            if check_mode:
                return None
            database = "passwd" if kind == "owner" else "group"
            raise FilesError(
                f"{self.path}: {kind} {name!r} does not exist on this host; see 'getent {database}' for those that do"
            ) from error

    @property
    def content_differs(self) -> bool:
        """Whether the bytes at the path are not the wanted ones (a symbolic link never is)."""
        return self.before is None or self.before != self.content

    @property
    def attributes_differ(self) -> bool:
        """Whether an existing regular file has another owner, group or mode."""
        if self.status is None or self.was_link:
            return False
        seen = (self.status.st_uid, self.status.st_gid, stat.S_IMODE(self.status.st_mode))
        return seen != (self.uid, self.gid, self.mode)

    @property
    def changed(self) -> bool:
        """Whether anything is to be done."""
        if not self.present:
            return self.status is not None
        return self.content_differs or self.attributes_differ

    def diff(self) -> list[dict[str, str]]:
        """Return the entries that Ansible's --diff prints for this file."""
        entries = []
        if self.content_differs or not self.present:
            before = self._shown(self.before, "old")
            if self.was_link:
                before = f"(symbolic link to {os.readlink(self.path)})\n"
            after = self._shown(self.content if self.present else None, "new")
            entries.append({"before": before, "after": after, "before_header": self.path, "after_header": self.path})
        if self.present and self.attributes_differ and self.status is not None:
            header = f"{self.path} (attributes)"
            now = (self.status.st_uid, self.status.st_gid, stat.S_IMODE(self.status.st_mode))
            then = (
                self.owner if self.uid is None else self.uid,
                self.group if self.gid is None else self.gid,
                self.mode,
            )
            before, after = (f"owner: {uid}\ngroup: {gid}\nmode: {mode:04o}\n" for uid, gid, mode in (now, then))
            entries.append({"before": before, "after": after, "before_header": header, "after_header": header})
        return entries

    def _shown(self, content: bytes | None, age: str) -> str:
        """Return what a diff may say about `content`; `age` tells a hidden old content from a hidden new one."""
        if content is None:
            return ""
        return f"({age} content, not shown)\n" if self.no_diff else content.decode("utf-8", "replace")

    def stage(self) -> None:
        """Put the wanted content on the disk beside its destination, readable for nobody else until it is complete."""
        if not self.present or not self.content_differs:
            return
        directory = os.path.dirname(self.path)
        make_parents(directory)
        descriptor, self.staged = tempfile.mkstemp(prefix=f".{os.path.basename(self.path)}.", dir=directory)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(self.content)
            stream.flush()
            self._own(descriptor)
            os.fsync(descriptor)

    def commit(self) -> None:
        """Make the change visible: rename, set attributes or remove."""
        if not self.present:
            os.unlink(self.path)
        elif self.staged is None:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                self._own(descriptor)
            finally:
                os.close(descriptor)
        else:
            try:
                os.replace(self.staged, self.path)
            except OSError as error:
                # A bind-mounted file cannot be renamed over; writing through the mount is all there is.
                if error.errno != errno.EBUSY:
                    raise
                self._write_in_place()

    def _own(self, descriptor: int) -> None:
        """Set owner, group and mode of an open file; the mode last, because a change of owner clears set-user-id."""
        os.fchown(descriptor, -1 if self.uid is None else self.uid, -1 if self.gid is None else self.gid)
        os.fchmod(descriptor, self.mode)

    def _write_in_place(self) -> None:
        """Overwrite the file behind a mount point; tightens the mode before the content arrives."""
        with open(self.path, "r+b") as stream:
            self._own(stream.fileno())
            stream.write(self.content)
            stream.truncate()
            stream.flush()
            os.fsync(stream.fileno())

    def clean(self) -> None:
        """Remove what `stage` left, if `commit` did not use it up."""
        if self.staged is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.staged)


def make_parents(directory: str) -> None:
    """Create `directory` and its missing parents with mode 0755, whatever the umask of the session is."""
    umask = os.umask(0o022)
    try:
        os.makedirs(directory, exist_ok=True)
    finally:
        os.umask(umask)


def apply(wanted: list[Wanted]) -> None:
    """Bring every file of `wanted` that differs to its wanted state.

    Raises FilesError naming the file; when staging fails no file has changed yet.
    """
    todo = [file for file in wanted if file.changed]
    file = None
    try:
        for file in todo:
            file.stage()
        for file in todo:
            file.commit()
    except OSError as error:
        path = file.path if file is not None else "?"
        hint = {
            errno.ENOSPC: "free some space (see 'df -h') and run again",
            errno.EDQUOT: "raise the quota and run again",
            errno.EROFS: "the file system is mounted read-only; see 'findmnt -T' of that path and 'dmesg'",
            errno.EBUSY: "it is a mount point; see 'findmnt' and unmount it first",
            errno.EACCES: "run with become, as root",
            errno.EPERM: "run with become, as root, and see 'lsattr' for an immutable file",
        }.get(error.errno or 0, "see 'ls -la' of that path and run again")
        raise FilesError(f"{path}: {error.strerror} ({errno.errorcode.get(error.errno or 0, '?')}); {hint}") from error
    finally:
        for file in todo:
            file.clean()


def pending_note(path: str, changed: list[str]) -> Wanted:
    """Return the note at `path` with the paths in `changed` added to those that it holds."""
    user = {"owner": str(os.geteuid()), "group": str(os.getegid())}
    entry = {"path": path, "state": "present", "content": "", "mode": "0600", "no_diff": False, **user}
    note = Wanted(entry, check_mode=False)
    noted = (note.before or b"").decode("utf-8", "surrogateescape").splitlines()
    lines = noted + [name for name in changed if name not in noted]
    note.content = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
    return note


class FilesModule(AnsibleModule):  # type: ignore[misc]  # ansible-core carries no type information
    """AnsibleModule whose note in the host's system log holds paths instead of whole files."""

    def _log_invocation(self) -> None:
        """Say which files a call is about; contents may be long or secret."""
        self.log("Invoked on " + ", ".join(str(entry["path"]) for entry in self.params["files"]))


def main() -> None:
    """Run as an Ansible module."""
    module = FilesModule(
        argument_spec={
            "files": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "path": {"type": "str", "required": True},
                    "content": {"type": "str"},
                    "owner": {"type": "str", "default": "root"},
                    "group": {"type": "str", "default": "root"},
                    "mode": {"type": "raw", "default": "0644"},
                    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
                    "no_diff": {"type": "bool", "default": False},
                },
            },
            "pending_file": {"type": "path"},
        },
        supports_check_mode=True,
    )
    entries = module.params["files"]
    wanted: list[Wanted] = []
    problems: list[str] = []
    paths: set[str] = set()
    for entry in entries:
        try:
            wanted.append(Wanted(entry, check_mode=module.check_mode))
        except FilesError as error:
            problems.append(str(error))
        if entry["path"] in paths:
            problems.append(f"{entry['path']} is listed twice; every path has one wanted state")
        paths.add(entry["path"])
    if problems:
        module.fail_json(msg="Nothing was written. " + " | ".join(problems), changed_paths=[])
    changed = [file.path for file in wanted if file.changed]
    note = pending_note(module.params["pending_file"], changed) if module.params["pending_file"] else None
    result: dict[str, Any] = {
        "changed": bool(changed),
        "changed_paths": changed,
        "pending_paths": note.content.decode().splitlines() if note else changed,
    }
    if module._diff:
        result["diff"] = [entry for file in wanted if file.changed for entry in file.diff()]
    if changed and not module.check_mode:
        try:
            # The note stands before the first change does.
            apply([note, *wanted] if note else wanted)
        except FilesError as error:
            module.fail_json(msg=str(error), changed_paths=[])
    module.exit_json(**result)


if __name__ == "__main__":
    main()
