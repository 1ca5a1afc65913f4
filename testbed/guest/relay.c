/*
 * relay [-c CONTEXT] [-t SECONDS] [-i] [-T] -- COMMAND [ARG]...
 *
 * Purpose: run one command inside L1 for `testbed exec`: in the wanted SELinux
 *          context, with pipes that were *made in that context*. The pipes of sshd
 *          carry sshd_t; a confined program could not write to them, as it could
 *          to those of the shell or the service manager that starts it on a real host.
 * Trust:   test equipment; runs as root inside the emulated machine only.
 * Caller:  sshd's login shell.
 *
 * Two lives: the first sets the exec context and executes itself; the second, now in
 * that context, makes the pipes, starts the command, copies, and ends with its status:
 * 124 = timed out, 125 = relay's own failure, 126/127 = cannot execute, 128+n = signal n.
 * When the far side goes away the command's process group is killed.
 * -i passes stdin on, -T (terminal) executes the command directly on the given pty.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SELF "/usr/libexec/testbed/relay"
#define FAILED 125
#define TIMED_OUT 124

struct stream {
    int from, to;    /* -1 = finished */
    char buf[65536];
    size_t at, len;
};

static int child_gone_fd[2];

static int fail(const char *what)
{
    dprintf(2, "testbed relay: %s: %s\n", what, strerror(errno));
    return FAILED;
}

static void on_child(int sig)
{
    int saved = errno;
    (void)sig;
    if (write(child_gone_fd[1], "", 1) < 0) { /* full: already signalled */ }
    errno = saved;
}

static long long now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static int set_exec_context(const char *context)
{
    int fd = open("/proc/thread-self/attr/exec", O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t n = write(fd, context, strlen(context));
    close(fd);
    return n < 0 ? -1 : 0;
}

static void finish(struct stream *s)
{
    if (s->from >= 0)
        close(s->from);
    if (s->to >= 0)
        close(s->to);
    s->from = s->to = -1;
}

/* One step of copying. A vanished reader is only this stream's end. */
static void copy(struct stream *s)
{
    if (s->len == 0) {
        ssize_t n = read(s->from, s->buf, sizeof s->buf);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            return;
        if (n <= 0) {
            finish(s);
            return;
        }
        s->at = 0;
        s->len = (size_t)n;
    }
    ssize_t n = write(s->to, s->buf + s->at, s->len);
    if (n < 0) {
        if (errno != EAGAIN && errno != EINTR)
            finish(s);
        return;
    }
    s->at += (size_t)n;
    s->len -= (size_t)n;
}

static void start_child(char **argv, int pipes[3][2])
{
    for (int i = 0; i < 3; i++) {
        int end = i == 0 ? pipes[i][0] : pipes[i][1];
        if (dup2(end, i) < 0)
            _exit(fail("dup2"));
    }
    setsid();
    signal(SIGPIPE, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execvp(argv[0], argv);
    int missing = errno == ENOENT;
    fail(argv[0]);
    _exit(missing ? 127 : 126);
}

static int status_of(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return fail("waitpid");
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

/* Copies until the command has ended and its output is drained (a daemon it left
 * behind may hold the pipes open: 100 ms of silence ends the wait for that). */
static int pump(pid_t pid, struct stream *s, long long deadline)
{
    int status = -1, hung_up = 0;
    for (;;) {
        struct pollfd p[6];
        for (int i = 0; i < 3; i++) {
            int reading = s[i].from >= 0 && s[i].len == 0;
            int writing = s[i].from >= 0 && s[i].len > 0;
            p[i] = (struct pollfd){reading ? s[i].from : writing ? s[i].to : -1, reading ? POLLIN : POLLOUT, 0};
        }
        p[3] = (struct pollfd){child_gone_fd[0], POLLIN, 0};
        /* Events 0: only POLLERR, which a pipe reports when its reader has gone. */
        p[4] = (struct pollfd){hung_up || s[1].to < 0 ? -1 : s[1].to, 0, 0};
        p[5] = (struct pollfd){-1, 0, 0};
        long long left = deadline ? deadline - now_ms() : -1;
        int wait = status >= 0 ? 100 : left < 0 ? -1 : left > 60000 ? 60000 : (int)left;
        if (deadline && left <= 0 && status < 0) {
            kill(-pid, SIGKILL);
            dprintf(2, "testbed relay: timed out, killed\n");
            (void)status_of(pid);
            return TIMED_OUT;
        }
        int n = poll(p, 6, wait);
        if (n < 0 && errno != EINTR)
            return fail("poll");
        if (n == 0 && status >= 0)
            return status;
        if (n <= 0)
            continue;
        for (int i = 0; i < 3; i++)
            if (p[i].revents)
                copy(&s[i]);
        if (p[4].revents & (POLLERR | POLLHUP)) {
            hung_up = 1;
            kill(-pid, SIGTERM);
            long long kill_at = now_ms() + 3000;
            deadline = deadline && deadline < kill_at ? deadline : kill_at;
        }
        if (p[3].revents && status < 0) {
            char drop[16];
            if (read(child_gone_fd[0], drop, sizeof drop) > 0)
                status = status_of(pid);
            finish(&s[0]);
        }
        if (status >= 0 && s[1].from < 0 && s[2].from < 0)
            return status;
    }
}

static int relay(char **argv, int seconds, int with_stdin)
{
    static struct stream s[3];
    int pipes[3][2];
    if (pipe2(child_gone_fd, O_CLOEXEC | O_NONBLOCK) < 0)
        return fail("pipe2");
    for (int i = 0; i < 3; i++)
        if (pipe2(pipes[i], O_CLOEXEC) < 0)
            return fail("pipe2");
    signal(SIGPIPE, SIG_IGN);
    struct sigaction act = {.sa_handler = on_child, .sa_flags = SA_NOCLDSTOP};
    sigaction(SIGCHLD, &act, NULL);

    pid_t pid = fork();
    if (pid < 0)
        return fail("fork");
    if (pid == 0)
        start_child(argv, pipes);
    close(pipes[0][0]);
    close(pipes[1][1]);
    close(pipes[2][1]);
    s[0] = (struct stream){.from = 0, .to = pipes[0][1]};
    s[1] = (struct stream){.from = pipes[1][0], .to = 1};
    s[2] = (struct stream){.from = pipes[2][0], .to = 2};
    if (!with_stdin)
        finish(&s[0]); /* the command sees an end of file at once */
    return pump(pid, s, seconds > 0 ? now_ms() + seconds * 1000LL : 0);
}

int main(int argc, char **argv)
{
    const char *context = NULL;
    int seconds = 0, with_stdin = 0, terminal = 0, opt;
    while ((opt = getopt(argc, argv, "+c:t:iT")) != -1) {
        switch (opt) {
        case 'c': context = optarg; break;
        case 't': seconds = atoi(optarg); break;
        case 'i': with_stdin = 1; break;
        case 'T': terminal = 1; break;
        default: return FAILED;
        }
    }
    if (optind >= argc) {
        errno = EINVAL;
        return fail("no command");
    }
    if (context) {
        if (set_exec_context(context) < 0)
            return fail(context);
        if (!terminal) {
            char limit[16];
            char *again[argc + 8];
            int n = 0;
            snprintf(limit, sizeof limit, "%d", seconds);
            again[n++] = SELF;
            again[n++] = "-t";
            again[n++] = limit;
            if (with_stdin)
                again[n++] = "-i";
            again[n++] = "--";
            for (int i = optind; i <= argc; i++)
                again[n++] = argv[i];
            execv(SELF, again);
            return fail(context);
        }
    }
    if (terminal) {
        execvp(argv[optind], argv + optind);
        int missing = errno == ENOENT;
        fail(argv[optind]);
        return missing ? 127 : 126;
    }
    return relay(argv + optind, seconds, with_stdin);
}
