// What happens, as it happens: the stream of events of a run. It connects again by itself, from where it stands (the
// server then tells what changed since), and says how long ago it last heard anything.

const SILENCE_MS = 6000; // the server says something every second or two
const WAITS_MS = [300, 1000, 2000, 5000];
const NAMES = ['hello', 'commit', 'resync', 'stage', 'frame', 'gap', 'late', 'warning', 'run', 'report', 'heartbeat'];

export class Events {
  /**
   * @param on { commit, resync, stage, frame, gap, late, run, heartbeat, report, warning: (data) => …,
   *   state: ('live' | 'connecting') => … }
   */
  constructor(api, on) {
    this.api = api;
    this.on = on;
    this.tries = 0;
    this.heardAt = performance.now();
    this.source = null;
    this.live = false;
    setInterval(() => this.#look(), 1000);
    window.addEventListener('online', () => this.reconnect());
    document.addEventListener('visibilitychange', () => {
      if (!document.hidden && !this.live) this.reconnect();
    });
  }

  /** Milliseconds since anything was heard. */
  get silence() {
    return performance.now() - this.heardAt;
  }

  /** Follow a run; `since` gives { run, epoch, rev } at the time of asking. */
  follow(since) {
    this.since = since;
    this.tries = 0;
    this.heardAt = performance.now();
    this.#connect();
  }

  reconnect() {
    if (this.since) this.#connect();
  }

  #connect() {
    clearTimeout(this.timer);
    this.source?.close();
    this.live = false;
    this.on.state('connecting');
    const { run, epoch, rev } = this.since();
    const source = new EventSource(this.api.url('events', { run, since: rev, epoch }));
    this.source = source;
    this.startedAt = performance.now();
    source.onopen = () => {
      if (this.source !== source) return;
      this.#heard();
      this.tries = 0;
      this.live = true;
      this.on.state('live');
    };
    source.onerror = () => {
      if (this.source === source) this.#again();
    };
    for (const name of NAMES) {
      source.addEventListener(name, (event) => {
        if (this.source !== source) return;
        this.#heard();
        let data = null;
        try {
          data = JSON.parse(event.data);
        } catch {
          return;
        }
        this.on[name]?.(data);
      });
    }
  }

  #heard() {
    this.heardAt = performance.now();
  }

  #again() {
    this.source?.close();
    this.source = null;
    this.live = false;
    this.on.state('connecting');
    const wait = WAITS_MS[Math.min(this.tries++, WAITS_MS.length - 1)];
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#connect(), wait);
  }

  #look() {
    if (!this.since) return;
    if (this.source && this.silence > SILENCE_MS && performance.now() - this.startedAt > SILENCE_MS) {
      this.startedAt = performance.now();
      this.#again();
    }
  }
}
