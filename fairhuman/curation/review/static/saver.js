// Saves drafts one after the other. While one is on its way, only the newest of the others waits.

import * as api from "./api.js";

export class Saver {
  // told: {saved(state), refused(error), busy(boolean)}
  constructor(told) {
    this.told = told;
    this.running = null;
    this.waiting = null;
  }

  open(number, version) {
    this.number = number;
    this.version = version;
    this.waiting = null;
  }

  save(draft, done) {
    this.waiting = {draft, done};
    this.running ??= this.#run();
    return this.running;
  }

  // Resolves once nothing is on its way.
  async idle() { while (this.running) await this.running; }

  async #run() {
    this.told.busy(true);
    try {
      while (this.waiting) {
        const {draft, done} = this.waiting;
        this.waiting = null;
        const edit = {version: this.version, text: draft.text, regions: draft.regions, done};
        const state = await api.save(this.number, edit);
        this.version = state.version;
        if (!this.waiting) this.told.saved(state);
      }
    } catch (error) {
      this.waiting = null;
      this.told.refused(error);
    } finally {
      this.running = null;
      this.told.busy(false);
    }
  }
}
