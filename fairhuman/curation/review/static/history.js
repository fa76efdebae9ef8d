// The drafts of one image, to go back and forth in. A draft is never changed once it is in here.

export class History {
  constructor(first) {
    this.drafts = [first];
    this.at = 0;
  }

  get current() { return this.drafts[this.at]; }
  get canUndo() { return this.at > 0; }
  get canRedo() { return this.at < this.drafts.length - 1; }

  push(draft) {
    this.drafts.splice(this.at + 1, Infinity, draft);
    this.at += 1;
  }

  undo() { if (this.canUndo) this.at -= 1; return this.current; }
  redo() { if (this.canRedo) this.at += 1; return this.current; }
}
