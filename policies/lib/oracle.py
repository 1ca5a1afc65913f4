"""What a compiled policy answers, by libsepol itself: rules and constraints, no kernel needed."""
import ctypes
from ctypes import POINTER, byref, c_char_p, c_size_t, c_uint16, c_uint32, c_void_p


class _Decision(ctypes.Structure):
    _fields_ = [("allowed", c_uint32), ("decided", c_uint32), ("auditallow", c_uint32),
                ("auditdeny", c_uint32), ("seqno", c_uint32)]


class Oracle:
    """One policy at a time: libsepol keeps it in a global."""

    def __init__(self, policy):
        self._sepol = ctypes.CDLL("libsepol.so.2")
        libc = ctypes.CDLL(None)
        libc.fopen.restype = c_void_p
        file = libc.fopen(str(policy).encode(), b"rb")
        if not file or self._sepol.sepol_set_policydb_from_file(c_void_p(file)) < 0:
            raise OSError(f"{policy} is not a policy that this machine's libsepol reads")
        libc.fclose(c_void_p(file))
        self._sepol.sepol_debug(0)
        self._sids = {}

    def _sid(self, context):
        if context not in self._sids:
            sid = c_uint32()
            raw = context.encode()
            if self._sepol.sepol_context_to_sid(c_char_p(raw), c_size_t(len(raw) + 1), byref(sid)) < 0:
                raise KeyError(f"the policy does not know {context}")
            self._sids[context] = sid.value
        return self._sids[context]

    def allowed(self, subject, target, class_name, perms):
        """{perm: bool}; a class or permission that the policy lacks is None."""
        number = c_uint16()
        if self._sepol.sepol_string_to_security_class(c_char_p(class_name.encode()), byref(number)) < 0:
            return {p: None for p in perms}
        answer = _Decision()
        if self._sepol.sepol_compute_av(c_uint32(self._sid(subject)), c_uint32(self._sid(target)), number,
                                        c_uint32(0), byref(answer)) < 0:
            raise OSError(f"no answer for {subject} {target} {class_name}")
        found = {}
        for perm in perms:
            bit = c_uint32()
            known = self._sepol.sepol_string_to_av_perm(number, c_char_p(perm.encode()), byref(bit)) >= 0
            found[perm] = bool(answer.allowed & bit.value) if known else None
        return found

    def may(self, subject, target, class_name, perm):
        """True, False, or None where the policy does not know a word of the question."""
        try:
            return self.allowed(subject, target, class_name, [perm])[perm]
        except KeyError:
            return None
